"""Ray Data graphs, one file a pipeline. They only wire what `videolavit` computes."""
