/* Empty on purpose: BCC includes it, nothing is needed of it. */
