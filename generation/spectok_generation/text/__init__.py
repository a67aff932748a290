"""Text: encoders from open_clip, features of the captions of a data set, and a small CLIP."""
