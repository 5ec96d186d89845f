"""What is measured of an exported file. `quality`, `latency`, `size` and `environment` never import torch."""
