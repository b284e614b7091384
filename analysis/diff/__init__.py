"""What did one run do to the same pairs that another run did not?"""
