"""int8 models become C for small cores: memory plan, weight layouts, generated source."""
