"""What `rarl prepare` and `rarl data` do: sources, DICOM, faults, leaks, cards."""
