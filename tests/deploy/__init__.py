"""What `deploy/` hands to a team: each file read by the tool that will read it, and run as it says."""
