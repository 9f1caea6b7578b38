"""The simulated pick-and-place world, its scripted expert, and the recorder of default demonstrations."""
