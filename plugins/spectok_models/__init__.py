"""The trained models that are installed with spectok."""
