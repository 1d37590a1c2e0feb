"""From a configuration to run folders."""
