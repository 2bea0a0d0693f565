"""This build beside an earlier one, which is checked out elsewhere: ratios of the seconds of whole commands."""
