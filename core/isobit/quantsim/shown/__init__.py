"""What a simulator is, to look at: a report, and the values of one tensor with its grid."""
