"""GR00T / LeRobot data sets as typed episodes: read and write."""

from .dataset import Episode, EpisodeDataset
from .errors import DatasetError
from .video import Video
from .writer import EpisodeWriter

__all__ = ["DatasetError", "Episode", "EpisodeDataset", "EpisodeWriter", "Video"]
