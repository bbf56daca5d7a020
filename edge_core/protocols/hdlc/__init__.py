"""HDLC as IEC 62056-46 uses it."""
