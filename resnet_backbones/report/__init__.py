"""Reports of a run, a results file or a dataset: what is found and missed, as one self-contained HTML page.

`detection` and `classification` compute the numbers, `gallery` chooses and shrinks the images, and `page` puts both
into one file with the scripts that draw them.
"""
