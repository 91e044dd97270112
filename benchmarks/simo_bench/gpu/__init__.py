"""What a machine with an NVIDIA GPU measures: benchmarks/gpu/run_all.sh runs it all."""
