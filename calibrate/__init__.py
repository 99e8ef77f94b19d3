"""What is measured on a model: samples, loading, mergeable statistics, one probe a file."""
