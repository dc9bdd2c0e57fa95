"""What AWS's Serverless Application Model needs: packages, checks, and the gateway under `sam local`."""
