"""From labelled windows to a calibrated ONNX model. Needs PyTorch, which nothing else here does."""
