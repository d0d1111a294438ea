"""One module per file format. Each has a reader, from files to records shaped like a COCO instances file."""
