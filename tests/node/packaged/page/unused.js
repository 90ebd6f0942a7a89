import { RelayClient, RelayError } from 'relay-client';

document.title = 'nothing';
