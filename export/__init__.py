"""A trained model becomes bytes: ONNX, the int8 graph, TFLite, C header, budgets."""
