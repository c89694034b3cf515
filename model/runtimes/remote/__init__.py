"""Models that a server computes: the Open Inference Protocol version 2 over HTTP and gRPC."""
