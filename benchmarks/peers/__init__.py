"""What people would pick instead of this project, each set up as its documentation recommends, over the same corpus."""
