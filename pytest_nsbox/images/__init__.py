"""Images: archives and directories, kept unpacked as layers that overlayfs reads."""
