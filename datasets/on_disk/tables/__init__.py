"""Tables with a row for each image, as CSV and TSV."""
