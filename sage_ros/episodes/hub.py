"""Data sets by their name on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..paths import cache_folder
from .errors import DatasetError

PATIENCE = 10  # s that the hub has to answer
_NAME = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_WANTED = ["meta/**", "data/**", "videos/**", "images/**", "README.md"]


def locate(name: Path | str) -> Path:
    """The folder of a data set: ``name`` itself if it is one, else a download of ``org/name`` or ``org/name@revision``.

    Downloads are kept in ``$XDG_CACHE_HOME/sage_ros/datasets`` as plain files and are gone on with after a break.
    Raises DatasetError where the hub cannot be reached or has no such data set.
    """
    folder = Path(name).expanduser()
    found = _NAME.fullmatch(str(name))
    if folder.exists() or found is None or str(name).startswith(".") or ".." in str(name):
        return folder.resolve()
    return _download(found["repo"], found["revision"])


def _download(repo: str, revision: str | None) -> Path:
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(PATIENCE))  # read when the library is first imported
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    kept = cache_folder() / "datasets"
    kept /= f"{repo.replace('/', '--')}@{(revision or 'main').replace('/', '--')}"
    endpoint = os.environ.get("HF_ENDPOINT") or None
    what = f"'{repo}' is no folder here, and could not be had from the hub"
    try:
        # One question with a deadline first: snapshot_download itself tries again and again for minutes.
        HfApi(endpoint=endpoint).dataset_info(repo, revision=revision, timeout=PATIENCE)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DatasetError(
            f"'{repo}' is no folder here, and the hub has no such data set"
            + (f" of revision '{revision}'" if revision else ""),
            remedy="correct the name or the revision; for a private data set log in with `hf auth login`",
        ) from error
    except Exception as error:  # of several HTTP libraries, depending on the version
        if (kept / "meta/info.json").is_file():
            return kept
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise DatasetError(
            f"{what} ({reason:.200})", remedy="name a folder, or go online; HF_ENDPOINT names another hub"
        ) from error
    try:
        snapshot_download(
            repo, repo_type="dataset", revision=revision, local_dir=kept, endpoint=endpoint, allow_patterns=_WANTED
        )
    except Exception as error:
        raise DatasetError(
            f"{what} whole ({type(error).__name__}: {error:.200})".split("\n")[0],
            kept,
            remedy="try again: what has arrived is kept",
        ) from error
    return kept
