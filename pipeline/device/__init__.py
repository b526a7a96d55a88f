"""A model on a board: writing it (flash.py), an emulated board's serial port (emulated.py), talking to it."""
