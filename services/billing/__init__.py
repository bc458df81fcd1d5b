"""Billing owns what Stripe says about money: customers, subscriptions, invoices, and the plans they give."""
