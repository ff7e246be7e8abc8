# SPDX-License-Identifier: GPL-2.0-or-later
"""Generators of broken images: one module per family, one small function or row per kind."""
