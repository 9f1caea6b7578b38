"""Teachers of a student behind one interface, their labels on disk, and the student served as GR00T serves."""
