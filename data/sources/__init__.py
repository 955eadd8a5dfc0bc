"""Sources of documents: text files, rows of data sets, the Hugging Face hub, code repositories."""
