"""What the processes of a launch do as one: how they meet, what they print, what one of them does for all."""
