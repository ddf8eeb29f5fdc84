"""The history of a run: the format of its files, who writes them and who reads them."""
