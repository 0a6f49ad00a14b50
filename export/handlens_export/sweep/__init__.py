"""A checkpoint's own table of quantizers: methods x bits x groups, each with what it costs in answers.

variants    what is tried: names to recipes
items       the text and the questions it is tried on
quality     how a network does on them, beside the float one
table       what came out, kept row by row
run         the sweep itself
"""
