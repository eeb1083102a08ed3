"""Ray Data graphs, training under Ray Train, and chains of them. They only wire what `videolavit` computes."""
