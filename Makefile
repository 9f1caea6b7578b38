# make demo     sets everything up, lets the student pick and place in the simulated world, through all nodes, prints a
#                table and writes report/report.html; SEED=7 puts things elsewhere; SOURCE=replay replays demonstrations
#                DATASET=folder also distils a student on that data set (kept in report/) and replays its episode 0
# make test     sets everything up, checks style and types, runs the tests (two at a time; JOBS=0: one by one)
# make bench    lists the benchmarks and their recorded figures; NAME=latency runs one
SHELL := /bin/bash
VENV ?= .venv
export VENV DISTRO PYTHON
BIN := $(VENV)/bin
# Discovery stays on this machine, and the package's libraries are found without sourcing anything.
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST
# Two cores: one thread per network is faster than several that fight.
export OMP_NUM_THREADS ?= 1
SOURCE ?= sim
SEED ?= 100000
EPISODES ?= 2,3,0
JOBS ?= 2
REPORT ?= report
STUDENT ?= $(REPORT)/student-$(notdir $(patsubst %/,%,$(DATASET)))

.PHONY: help setup demo test lint bench clean
help:
	@sed -n '/^SHELL/q; s/^# //p' Makefile

setup:
	@scripts/setup.sh

demo: setup
	$(BIN)/python -m sage_ros.nodes.pick_place --source $(SOURCE) --seed $(SEED) --episodes $(EPISODES) --report $(REPORT)
ifdef DATASET
	test -f $(STUDENT)/config.json || $(BIN)/python -m sage_ros.training.distil --dataset $(DATASET) --out $(STUDENT)
	$(BIN)/python -m sage_ros.nodes.pick_place --dataset $(DATASET) --checkpoint $(STUDENT) --episodes 0 --report $(REPORT)/dataset
endif

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

bench: setup
	$(BIN)/python benchmarks/$(or $(NAME),list).py $(ARGS)

clean:
	rm -rf build install log $(REPORT)
