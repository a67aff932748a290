"""Product quantisation and strips, as a package that registers itself with spectok."""
