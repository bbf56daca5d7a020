"""Simulated Modbus meters on pymodbus' server, made from the product's own meter models (TOML), values from real loads.

`points` is what a model says, `quantities` what a meter measures at an instant, `units` its registers and the truth,
`server` the sockets and faults. The models are read as plain TOML: no code of the product is used to encode.
"""
