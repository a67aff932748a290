"""``spectok ui``: a page on this machine to play with trained models.

:mod:`subjects` loads them, :mod:`pictures`, :mod:`views` and :mod:`drawing` compute what is shown,
from tensors to pictures and words, and :mod:`page` and :mod:`tabs` alone know gradio.
"""
