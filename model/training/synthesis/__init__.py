"""Labelled sets made from real images: nodules put into a CT, motion put into an MR.

Everything made here is for demonstrations. Labels are known because somebody put them there, and
say nothing about patients.
"""
