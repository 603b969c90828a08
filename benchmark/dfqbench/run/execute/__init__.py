"""Where jobs run: processes of this machine, or this process."""
