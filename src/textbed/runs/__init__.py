"""What a run leaves behind: its folder, its record, its summary and its pictures."""
