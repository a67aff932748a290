"""Product quantisation, as a package that registers itself with spectok."""
