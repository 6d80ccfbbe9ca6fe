"""Tests of the integrations, each with the real package it integrates with."""
