# make demo     sets everything up, replays demonstrations through all nodes, prints a table, writes report/
# make test     sets everything up, checks style and types, runs the tests
# make bench    lists the benchmarks and their recorded figures; NAME=latency runs one
SHELL := /bin/bash
VENV ?= .venv
export VENV DISTRO PYTHON
BIN := $(VENV)/bin
# Discovery stays on this machine, and the package's libraries are found without sourcing anything.
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST
# Two cores: one thread per network is faster than several that fight.
export OMP_NUM_THREADS ?= 1
EPISODES ?= all
REPORT ?= report

.PHONY: help setup demo test lint bench data clean
help:
	@sed -n 's/^# make/make/p' Makefile

setup:
	@scripts/setup.sh

demo: setup
	$(BIN)/python -m sage_ros.nodes.pick_place --episodes $(EPISODES) --report $(REPORT)
ifdef DATASET
	test -f $(REPORT)/student/config.json || $(BIN)/python -m sage_ros.training.distil --dataset $(DATASET) --out $(REPORT)/student
	$(BIN)/python -m sage_ros.nodes.pick_place --dataset $(DATASET) --checkpoint $(REPORT)/student --episodes 0 --report $(REPORT)/dataset
endif

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(ARGS)

bench: setup
	$(BIN)/python benchmarks/$(or $(NAME),list).py $(ARGS)

clean:
	rm -rf build install log $(REPORT)
