"""What a training would do and take, worked out without starting one."""
