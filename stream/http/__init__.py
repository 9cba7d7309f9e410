"""What every HTTP service of ours does alike: keys, bodies within limits, one shape of errors, a socket and a drain."""
