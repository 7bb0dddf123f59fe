"""How fast the layers of real models run here, against torch and other engines: `python -m benchmarks --help`."""
