"""``spectok demo``: real images in, new images out, and a page that shows both.

recipe      which tokenizers, prior and samples; and that the comparison is a fair one
pipeline    trains, samples, measures, and writes everything into one folder
classifier  a small network that recognises the classes
judge       how good the samples are, and how far from the training images
pictures    grids and plots that a page can carry inside itself
report      the page
"""
