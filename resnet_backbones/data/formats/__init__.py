"""One module a file format. Each has a reader, from files to records shaped as a COCO instances file."""
