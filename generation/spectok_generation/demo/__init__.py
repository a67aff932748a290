"""``spectok demo``: real images in, new images out, and a report that shows both.

demo_recipe  tokenizers, prior and samples, and the check that the comparison is fair
pipeline     trains, samples, measures, and writes everything into one folder
stages       progress of the whole
judge        quality of the samples, and their distance to the training images
installed    trained models on photographs
results      what was measured, for the report
report       the page, made of the parts in page and pictures
"""
