"""How good models are: accuracy, honesty of ellipses and confidence, the bound that physics sets, and baselines."""
