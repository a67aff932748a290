"""``spectok demo``: real images in, new images out, and a page that shows both.

recipe      which tokenizers, prior and samples; and that the comparison is a fair one
pipeline    trains, samples, measures, and writes everything into one folder
stages      tells how far it is
classifier  a small network that recognises the classes
judge       how good the samples are, and how far from the training images
results     what was found, on its way to the page
report      the page, made of the parts in page and pictures
"""
