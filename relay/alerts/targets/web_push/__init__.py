"""The kind `webpush`: notifications in browsers, by the push services of those."""
